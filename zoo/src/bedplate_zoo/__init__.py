"""Small models made with bedplate: each folder here is a model directory, loaded as `zoo:FOLDER`."""
