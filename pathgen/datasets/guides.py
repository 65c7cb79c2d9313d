"""Where each data set comes from, under which terms, and how it lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Guide:
    """What a person needs to get a data set; nothing is downloaded by pathgen."""

    title: str
    content: str
    source: str
    access: str
    terms: str
    layout: str
    lists: str = ""

    def text(self, command: str) -> str:
        """A page for the terminal."""
        parts = [
            f"{self.title}: {self.content}",
            f"Where    {self.source}",
            f"How      {self.access}",
            f"Terms    {self.terms}",
            "Layout\n" + "\n".join(f"  {line}" for line in self.layout.splitlines()),
        ]
        if self.lists:
            parts.append("Lists\n" + "\n".join(f"  {line}" for line in self.lists.splitlines()))
        parts.append(f"Then     {command}")
        return "\n".join(parts)


GUIDES: Mapping[str, Guide] = {
    "panda": Guide(
        "PANDA",
        "10,616 H&E prostate biopsies of Radboud UMC and Karolinska, ISUP grade 0 to 5; 347 GB.",
        "https://www.kaggle.com/competitions/prostate-cancer-grade-assessment/data",
        "accept the competition's rules, then: kaggle competitions download "
        "-c prostate-cancer-grade-assessment; unzip it to one folder.",
        "CC BY-NC-SA 4.0, no commercial use; cite Bulten et al., Nature Medicine 2022.",
        "train.csv                        image_id,data_provider,isup_grade,gleason_score\n"
        "train_images/IMAGE_ID.tiff       three levels: 1, 4 and 16\n"
        "train_label_masks/IMAGE_ID_mask.tiff",
        "--duplicates  CSV of image_id and group_id: near-duplicates by image hash\n"
        "--noisy       CSV of image_id: labels that are doubtful\n"
        "--clean       CSV of image_id: the slides that are left when doubtful ones are removed\n"
        "              for both: with a column noise_ratio_10, 0 is doubtful and 1 is left\n"
        "--suspicious  CSV of image_id and reason: pen marks, no tissue, no mask",
    ),
    "bright": Guide(
        "BRIGHT",
        "703 H&E breast slides of the BRIGHT challenge (ISBI 2022), three classes and six "
        "subtypes; 80 for validation; labels of the test part are hidden.",
        "https://research.ibm.com/haifa/Workshops/BRIGHT (Synapse syn26480664)",
        "register for the challenge; only WSIs are read, not ROIs. If access stays closed, BRACS "
        "has slides of the same hospital.",
        "for registered participants; cite Brancati et al., Database 2022 (BRACS).",
        "train/WSIs/.../*.svs             (also Train, Training)\n"
        "validation/WSIs/.../*.svs        (also val, Validation)\n"
        "test/WSIs/*.svs                  labels are hidden\n"
        "with folders of class or subtype above the slides (Pre-cancerous/ADH, "
        "Group_AT/Type_ADH, ADH), or a CSV of labels by --labels",
        "--labels      CSV of image_name, Task1-target (0 to 2) and Task2-target (0 to 5), as the\n"
        "              challenge's validation_targets.csv; may be given several times",
    ),
    "bracs": Guide(
        "BRACS",
        "547 H&E breast slides of 189 patients, seven subtypes in three groups; train 395, "
        "validation 65, test 87; 984 GB.",
        "https://www.bracs.icar.cnr.it",
        "register on the site, then download BRACS_WSI by FTP, and BRACS.xlsx, which names the "
        "patients.",
        "CC BY-NC 4.0 by the site's download page; cite Brancati et al., Database 2022.",
        "BRACS.xlsx                                       sheet WSI_Information\n"
        "BRACS_WSI/{train,val,test}/Group_XX/Type_YY/*.svs",
    ),
    "camelyon16": Guide(
        "CAMELYON16",
        "399 H&E slides of sentinel lymph nodes, normal or with metastases; train 270, test 129; "
        "about 700 GB.",
        "https://camelyon17.grand-challenge.org/Data (GigaScience 100439, AWS s3://camelyon-dataset)",
        "open; aws s3 cp --no-sign-request --recursive s3://camelyon-dataset/CAMELYON16 ROOT",
        "CC0; cite Ehteshami Bejnordi et al., JAMA 2017.",
        "training/normal/normal_NNN.tif   and training/tumor/tumor_NNN.tif\n"
        "training/lesion_annotations/tumor_NNN.xml          unzipped\n"
        "testing/images/test_NNN.tif      testing/reference.csv   "
        "testing/lesion_annotations/*.xml\n"
        "or, as on AWS, images/*.tif, annotations/*.xml and reference.csv",
    ),
    "folder": Guide(
        "a folder of your own",
        "slides in one folder a class, or anywhere with a CSV of labels.",
        "your own",
        "no download.",
        "yours.",
        "CLASS/**/*.svs                   the first folder is the class\n"
        "or any layout with --labels CSV: slide, label, and perhaps patient, site, group, split",
    ),
}  # fmt: skip
