"""What models do: pictures of the routes along which their layers scan."""

from .models import build_backbone
from .routes import Route, draw_routes, routes_of

__all__ = ["Route", "build_backbone", "draw_routes", "routes_of"]
