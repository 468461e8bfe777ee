"""Files of any kind: written atomically, recognised by their signature, downloaded."""
