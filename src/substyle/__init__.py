"""substyle: what does an image embedding know?"""

__version__ = "0.1.0"
