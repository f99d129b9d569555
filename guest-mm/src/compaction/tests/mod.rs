mod contig;
mod model;
mod obstacles;
mod scanners;
mod thread;
mod world;
