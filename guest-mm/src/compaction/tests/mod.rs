mod contig;
mod model;
mod scanners;
mod thread;
mod world;
