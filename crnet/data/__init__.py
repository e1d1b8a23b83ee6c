"""Archives, data sets, the prepared form that all of them take, test episodes, transforms."""
