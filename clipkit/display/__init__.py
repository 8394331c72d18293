"""What people see: tables and progress in a terminal, pages in a browser."""
