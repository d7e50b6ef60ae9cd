"""The name under which tests/experiment/test_compose_grids.py knows sweep_points."""

from sweep_points import points_of  # noqa: F401
