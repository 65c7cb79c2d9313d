"""Show me why, and find more like this. Needs runs/panda, features/, tiles/ and slides/B12.svs."""

import pathgen as pg

m = pg.load_model("runs/panda", features="features/", patches="tiles/")
h = m.heatmap("slides/B12.svs")
h.save("B12_heat.png")  # with a legend in um and what attention does not say
h.to_qupath("B12_heat.geojson", top=50)
pg.similar("tiles/B12#12", within="features/", k=12).montage().save("similar.png")
