"""Sites that draw in the browser: what a folder with the page, the module and a bundle is made of."""
