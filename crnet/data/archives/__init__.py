"""The official archives: downloaded, verified, extracted."""
