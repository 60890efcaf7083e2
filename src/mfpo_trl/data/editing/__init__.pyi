from .inpainter import Inpainter as Inpainter
