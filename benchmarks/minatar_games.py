"""Registers MinAtar's games with Gymnasium, as emulator.id=minatar_games:MinAtar/Breakout-v1 (pip install minatar)."""

from minatar.gym import register_envs

register_envs()
