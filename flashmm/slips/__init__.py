"""What people who know other packages write first, and what it is called here."""
