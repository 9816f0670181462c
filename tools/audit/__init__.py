"""Known vulnerabilities of the pinned packages, and the licences of the installed ones: `make audit`."""
