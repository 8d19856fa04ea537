"""Data audit: measures of all images, odd images, shortcuts, noise groups and slices."""
