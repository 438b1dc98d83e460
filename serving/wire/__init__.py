"""HTTP routes, their wire types, and the document that describes them."""
