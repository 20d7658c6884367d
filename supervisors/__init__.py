"""Life and death: supervisor, tree, status, main. Names actors by dotted string only."""
