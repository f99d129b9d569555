use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A socket whose owner died: bound, closed, never unlinked.
fn leave_stale(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert!(path.exists());
}

#[test]
fn a_bound_socket_is_private_and_accepts() {
    let dir = directory();
    let socket = ControlSocket::bind(dir.path().join("s")).unwrap();
    let entry = fs::symlink_metadata(socket.path()).unwrap();
    assert!(entry.file_type().is_socket());
    assert_eq!(entry.mode() & 0o777, 0o600);
    UnixStream::connect(socket.path()).unwrap();
}

#[test]
fn dropping_unlinks_the_path() {
    let dir = directory();
    let path = dir.path().join("s");
    drop(ControlSocket::bind(&path).unwrap());
    assert!(!path.exists());
}

#[test]
fn dropping_leaves_what_another_put_there() {
    let dir = directory();
    let path = dir.path().join("s");
    let socket = ControlSocket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(socket);
    assert!(path.exists());
    drop(other);
}

#[test]
fn a_live_socket_is_refused_and_keeps_serving() {
    let dir = directory();
    let live = ControlSocket::bind(dir.path().join("s")).unwrap();
    let error = ControlSocket::bind(live.path()).unwrap_err();
    assert!(matches!(error, SocketError::Taken { .. }), "{error}");
    assert!(error.to_string().contains("running VM"));
    UnixStream::connect(live.path()).unwrap();
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = directory();
    let path = dir.path().join("s");
    leave_stale(&path);
    let socket = ControlSocket::bind(&path).unwrap();
    UnixStream::connect(socket.path()).unwrap();
}

#[test]
fn checking_says_what_binding_would_and_touches_nothing() {
    let dir = directory();
    let path = dir.path().join("s");
    ControlSocket::check(&path).unwrap();
    assert!(!path.exists());
    leave_stale(&path);
    let before = fs::symlink_metadata(&path).unwrap().ino();
    ControlSocket::check(&path).unwrap();
    assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), before);
    let live = ControlSocket::bind(&path).unwrap();
    assert!(matches!(ControlSocket::check(live.path()), Err(SocketError::Taken { .. })));
}

#[test]
fn a_live_socket_with_a_full_queue_is_not_taken_for_stale() {
    let dir = directory();
    let path = dir.path().join("s");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    assert!(is_live(&path).unwrap());
    assert!(matches!(ControlSocket::bind(&path), Err(SocketError::Taken { .. })));
}

#[test]
fn a_symlink_is_refused_and_its_target_left_alone() {
    let dir = directory();
    let (path, target) = (dir.path().join("s"), dir.path().join("target"));
    leave_stale(&target);
    symlink(&target, &path).unwrap();
    let error = ControlSocket::bind(&path).unwrap_err();
    assert!(error.to_string().contains("a symbolic link"), "{error}");
    assert!(target.exists() && fs::symlink_metadata(&path).unwrap().is_symlink());
}

#[test]
fn a_dangling_symlink_is_refused_too() {
    let dir = directory();
    let (path, target) = (dir.path().join("s"), dir.path().join("target"));
    symlink(&target, &path).unwrap();
    assert!(matches!(ControlSocket::bind(&path), Err(SocketError::NotASocket { .. })));
    assert!(!target.exists());
}

#[test]
fn a_file_or_directory_is_refused_and_left_alone() {
    let dir = directory();
    let path = dir.path().join("s");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(ControlSocket::bind(&path), Err(SocketError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert!(matches!(ControlSocket::bind(dir.path()), Err(SocketError::NotASocket { .. })));
    assert!(matches!(ControlSocket::bind("/"), Err(SocketError::NotASocket { .. })));
}

#[test]
fn a_path_above_the_limit_is_refused_by_length() {
    let dir = directory();
    let fill = |total: usize| {
        let name = "x".repeat(total - dir.path().as_os_str().len() - 1);
        dir.path().join(name)
    };
    let error = ControlSocket::bind(fill(PATH_LIMIT + 1)).unwrap_err();
    assert_eq!(
        error.to_string().split(':').next().unwrap(),
        "Socket path is 108 bytes long, the limit is 107"
    );
    drop(ControlSocket::bind(fill(PATH_LIMIT)).unwrap());
}

#[test]
fn a_missing_directory_is_named() {
    let error = ControlSocket::bind("/nonexistent-directory/s").unwrap_err();
    assert!(error.to_string().contains("/nonexistent-directory"), "{error}");
}

#[test]
fn of_many_that_find_one_stale_socket_exactly_one_gets_it() {
    let dir = directory();
    let path = dir.path().join("s");
    for _round in 0..20 {
        leave_stale(&path);
        let bound: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| ControlSocket::bind(&path))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(bound.iter().filter(|socket| socket.is_ok()).count(), 1, "{bound:?}");
    }
}

#[test]
fn a_private_directory_is_made_and_accepted_again() {
    let dir = directory();
    let private = dir.path().join("run");
    make_private(&private).unwrap();
    assert_eq!(fs::symlink_metadata(&private).unwrap().mode() & 0o777, 0o700);
    make_private(&private).unwrap();
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    let dir = directory();
    let open = dir.path().join("run");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
    let error = make_private(&open).unwrap_err();
    assert!(error.to_string().contains("0700"), "{error}");
}

#[test]
fn a_symlink_in_place_of_the_directory_is_refused() {
    let dir = directory();
    let (real, link) = (dir.path().join("real"), dir.path().join("run"));
    make_private(&real).unwrap();
    symlink(&real, &link).unwrap();
    assert!(matches!(make_private(&link), Err(SocketError::NotPrivate { .. })));
}
