"""Everything is in setup.cfg but this: the folder `recipes` of the repository goes inside of the installed package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path("recipes")
INSIDE = Path("mfpo_trl", "recipes", "files")


class BuildWithRecipes(build_py):
    """The modules, and the recipes beside `mfpo_trl/recipes/shipped.py`; an editable install reads the repository's own."""

    def recipes(self) -> dict[str, str]:
        """Where each file goes, and where it is."""
        files = (path for path in sorted(RECIPES.rglob("*")) if path.is_file())
        return {str(Path(self.build_lib) / INSIDE / path.relative_to(RECIPES)): str(path) for path in files}

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for target, source in self.recipes().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return sorted({*super().get_outputs(include_bytecode), *self.recipes()})

    def get_output_mapping(self) -> dict[str, str]:
        return {**super().get_output_mapping(), **self.recipes()}


setup(cmdclass={"build_py": BuildWithRecipes})
