"""What is in this folder, and is it healthy? Needs slides/."""

import pathgen as pg

cohort = pg.open("slides/")  # folder, file, glob, CSV or list
print(cohort)  # 128 slides · 3 problems · 0.25-0.50 um/px · 4 scanner vendors · 9,210 mm2 of tissue
print(cohort.problems().to_string())  # DataFrame: slide, code, what, what to do
cohort.to_csv("inventory.csv")
