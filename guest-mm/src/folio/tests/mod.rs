mod handles;
mod split;
