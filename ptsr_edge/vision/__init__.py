"""From frames to flow: optical flow and strain, and the face they are taken from."""
