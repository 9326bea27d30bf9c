"""Installs one package: the folders beside `bnfree/` become parts of it. Everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

PARTS = ("callbacks", "datamodules", "lightning_modules")
DATA = {"configs": ["*.yaml", "plugins/*.yaml", "slurm/*"], "pretrained": ["*.safetensors", "*.md", "registry.json"]}
C_SOURCE = ["*.c", "*.h", "Makefile", "README.md"]

# In a checkout `bnfree/` holds links to the parts, for editors and type checkers; the build does not rely on them.
own = find_packages("bnfree", exclude=[pattern for part in PARTS for pattern in (part, f"{part}.*")])
packages = ["bnfree", *(f"bnfree.{name}" for name in own)]
for part in PARTS:
    packages += [f"bnfree.{part}", *(f"bnfree.{part}.{name}" for name in find_packages(part))]

setup(
    packages=[*packages, *(f"bnfree.{folder}" for folder in DATA)],
    package_dir={"bnfree": "bnfree", **{f"bnfree.{folder}": folder for folder in (*PARTS, *DATA)}},
    package_data={
        "bnfree": ["py.typed"],
        "bnfree.packing.c_source": C_SOURCE,
        **{f"bnfree.{folder}": patterns for folder, patterns in DATA.items()},
    },
)
