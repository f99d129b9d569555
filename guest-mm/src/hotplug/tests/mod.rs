mod blocks;
mod rest;
