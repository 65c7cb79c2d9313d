"""How good an encoder or a slide classifier is. Import the module you need; this loads none."""
