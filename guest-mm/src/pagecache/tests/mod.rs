mod files;
mod model;
mod races;
