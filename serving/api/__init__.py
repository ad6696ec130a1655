"""The routes: what may be asked, of which model, and in which shape it is answered."""
