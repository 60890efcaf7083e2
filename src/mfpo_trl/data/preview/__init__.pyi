from .show import preview as preview
