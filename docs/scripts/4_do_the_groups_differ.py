"""Do the groups differ? Features, table, test. Needs features/ and cases.csv."""

import pathgen as pg

f = pg.features("features/").slide_means()  # DataFrame indexed by slide id
t = pg.labels("cases.csv", id="slide", columns=["grade", "patient"])  # ids stay strings
df = f.join(t)
pg.pl.pca(df, color="grade").savefig("pca.png")  # or pg.pl.tsne; pg.pl.umap needs pathgen[umap]
result = pg.cross_validate(df, target="grade", groups="patient", folds=5)
print(result)  # grade from the table: accuracy 0.71 [0.62, 0.80], ..., kappa 0.83 [0.75, ...
result.report("result.html")  # intervals, confusion matrix, the surest errors
