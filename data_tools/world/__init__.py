"""The small drawn world behind `vlp-data shapes`: scenes, their photos, a fixed detector, captions and questions.

The road is scene -> photo -> regions (from the photo's pixels only), and scene -> captions and questions.
"""
