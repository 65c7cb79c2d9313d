"""Look before you cut. Needs slides/B12.svs."""

import pathgen as pg

s = pg.open("slides/B12.svs")
print(s)  # B12 · 46,000 x 32,914 px · 0.499 um/px · 23.0 x 16.4 mm · aperio 20x · 3 levels
s.thumbnail(1200).save("B12.png")  # never contains the label
mask = s.tissue()
print(mask)  # 83.20 mm2 of tissue in 3 pieces · 41% of what was scanned · mask of 8 um/px
mask.plot().savefig("B12_tissue.png")
mask.to_geojson("B12_tissue.geojson")  # opens in QuPath
s.read(x=600, y=500, size="256um", mpp=0.5).save("B12_field.png")  # x, y: level-0 pixels
