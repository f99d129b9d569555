mod chains;
mod unmapping;
pub(crate) mod world;
