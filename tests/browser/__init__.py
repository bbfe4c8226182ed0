"""A click on the page of a real Zipkin, in a browser."""

# Under one of these names it is installed.
CHROMIUM = ("chromium-headless-shell", "chromium", "google-chrome")
