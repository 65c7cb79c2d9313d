"""Judging an encoder on pictures of the world, by the protocols DINO and Gen-SIS report.

Retrieval on the revisited Oxford and Paris buildings, copy detection on Copydays, and video object
segmentation on DAVIS 2017. The data are read in the layouts they are distributed in.
"""
