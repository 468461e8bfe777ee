"""Adds conf/, tokenizers/, run.py and sweep.py to the wheel as minllm/home/; the rest is in pyproject.toml."""

from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py

HOME = ("conf", "tokenizers", "run.py", "sweep.py")


class WithHome(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # minllm uses those of the clone
        home = Path(self.build_lib, "minllm", "home")
        home.mkdir(parents=True, exist_ok=True)
        for name in HOME:
            if Path(name).is_dir():
                copytree(name, home / name, ignore=ignore_patterns("__pycache__", ".*"), dirs_exist_ok=True)
            else:
                copy2(name, home)


setup(cmdclass={"build_py": WithHome})
