"""The page that shows a store: pictures, point clouds, charts and text, put into one self-contained HTML file."""
