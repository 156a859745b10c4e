"""One self-contained HTML page a run: `page` lays it out, `plot` draws its SVG charts."""
