mod blocks;
mod device;
mod driver;
mod model;
mod rest;
