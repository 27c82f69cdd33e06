"""Find the packages: all of srm/, and migrations/ inside of it. Everything else about the build is in setup.cfg."""

from setuptools import find_packages, setup

MIGRATIONS = ["srm.migrations", *(f"srm.migrations.{name}" for name in find_packages("migrations"))]
"""Their folder is migrations/, at the top, where alembic and DBAs look for it (`package_dir` in setup.cfg)."""

setup(packages=[*find_packages(include=["srm", "srm.*"]), *MIGRATIONS])
