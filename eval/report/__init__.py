"""Result files as Markdown and as one HTML page that needs no network: tables, curves, the worst images first."""
