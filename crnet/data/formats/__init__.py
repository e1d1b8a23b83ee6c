"""How PASCAL and COCO keep photos and masks, and what is read of them."""
