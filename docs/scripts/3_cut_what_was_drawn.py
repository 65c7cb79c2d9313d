"""Cut the tumor my colleague drew in QuPath. Needs slides/B12.svs and B12.geojson."""

import pathgen as pg

roi = pg.annotations("B12.geojson", classes=["Tumor", "Stroma"])
print(roi)  # 12 regions: Tumor 8, Stroma 4 · 1 problem
print(roi.problems().to_string())  # what was broken, and how it was repaired
p = pg.tile("slides/B12.svs", out="tiles/", mpp=0.5, size=256, within=roi, min_overlap=0.5)
print(p.summary())  # 1,842 patches of 1 slide: Tumor 1,203 · Stroma 639 · dropped 77 (outside 77)
p.montage(n=64).save("check.png")
