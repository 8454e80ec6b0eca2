# shellcheck shell=bash
# What the scripts beside this file share: packages, builds, mounts and their removal. To be sourced.
#
# Whatever a script mounts lies beneath its $WORK directory, so one function takes everything away again.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
TOOLS=$ROOT/target/tools

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages NAME...: installs the Debian packages that are not there yet.
need_packages() {
    local missing=() name
    command -v dpkg-query >/dev/null || return 0 # Another distribution: what is missing will say so itself.
    for name; do
        dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing ${missing[*]}"
    # Exported, so that a script run by this one does not fetch the lists again.
    if [ -z "${APT_LISTS_FRESH:-}" ]; then
        as_root apt-get update -qq
        export APT_LISTS_FRESH=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

# need_crate NAME VERSION: installs a program of crates.io into target/tools.
need_crate() {
    if ! "$TOOLS/bin/$1" --version 2>/dev/null | grep -qF "$2"; then
        cargo install --quiet --locked --root "$TOOLS" "$1@$2"
    fi
}

# need_fuse: fails unless a filesystem can be mounted here.
need_fuse() {
    [ -c /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -c /dev/fuse ] || die "/dev/fuse is missing: nothing can be mounted here"
}

# build_mmapfs PROFILE: builds the program unless $MMAPFS already names it; sets MMAPFS.
build_mmapfs() {
    [ -z "${MMAPFS:-}" ] || return 0
    case $1 in
        release) cargo build --quiet --release --manifest-path "$ROOT/Cargo.toml" --bin mmapfs ;;
        debug) cargo build --quiet --manifest-path "$ROOT/Cargo.toml" --bin mmapfs ;;
    esac
    MMAPFS=$(cd "$TARGET" && pwd)/$1/mmapfs
}

# become_root ARG...: starts the script again as root. What must be built is built before, as the user.
become_root() {
    [ "$(id -u)" = 0 ] || exec sudo MMAPFS="$MMAPFS" "$ROOT/scripts/${0##*/}" "$@"
}

# make_workdir: sets WORK, a new directory that any user may pass through. It goes when the script ends.
# The name is short: the path of a socket may have 107 bytes, and pjdfstest makes sockets.
make_workdir() {
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/mmapfs.XXXXXX")
    chmod 755 "$WORK"
    # Where scratches are listed goes with everything else.
    export MMAPFS_STATE_DIR="$WORK/state"
    trap remove_workdir EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

remove_workdir() {
    trap '' HUP INT TERM
    end_watcher
    unmount_below "$WORK"
    rm -rf --one-file-system "$WORK"
}

# The table of mounts is asked, never a mount point itself, whose daemon may hang.
mount_points() { findmnt --list --noheadings --output TARGET; }
is_mounted() { mount_points | grep -qxF "$1"; }

# mounts_below DIR: prints the mount points beneath it, the innermost first.
mounts_below() {
    mount_points | grep -F "$1/" | sort -r || true
}

unmount_below() {
    local point
    mounts_below "$1" | while IFS= read -r point; do unmount "$point"; done
}

# unmount POINT: waits for users that are just leaving; then aborts the connection and detaches the mount.
unmount() {
    local end=$((SECONDS + 15)) once=(umount "$1") force=(umount -f -c "$1") detach=(umount -l -c "$1")
    if [ "$(id -u)" != 0 ]; then
        once=(fusermount3 -u "$1") force=(false) detach=(fusermount3 -u -z "$1")
    fi
    while [ $SECONDS -lt $end ]; do
        timeout --kill-after=1 10 "${once[@]}" 2>/dev/null && return 0
        is_mounted "$1" || return 0
        sleep 0.2
    done
    echo "$1 is busy: forcing it off" >&2
    "${force[@]}" 2>/dev/null || "${detach[@]}"
}

# mount_ext4 POINT SIZE [MKFS-ARG...]: mounts a new filesystem on a sparse image. Without discard, so that
# punched holes are the filesystem's doing alone.
mount_ext4() {
    local point=$1 size=$2 image=$1.img
    shift 2
    mkdir -p "$point"
    truncate -s "$size" "$image"
    mkfs.ext4 -q -F -E nodiscard "$@" "$image"
    mount -o loop,nodiscard "$image" "$point"
    chmod 755 "$point"
}

# mount_mmapfs OPTIONS SOURCE POINT
mount_mmapfs() {
    mkdir -p "$3"
    # Nobody's system log is to be filled by tests.
    "$MMAPFS" mount -o "log_file=$WORK/daemon.log,$1" "$2" "$3" || die "cannot mount $2 at $3"
    is_mounted "$3" || die "nothing is mounted at $3"
}

# watched SECONDS POINT COMMAND...: runs the command; past the time, it aborts the connection of the mount at POINT,
# without which a process that waits for a hung daemon cannot even be killed.
watched() {
    local seconds=$1 point=$2 status=0
    shift 2
    {
        # Short naps, so that none is left behind for long.
        for (( ; seconds > 0; seconds--)); do sleep 1; done
        echo "$point: no end in time, aborting its connection" >&2
        umount -f -c "$point" 2>/dev/null || true # It aborts, and then finds the mount busy.
    } &
    WATCHER=$!
    "$@" || status=$?
    end_watcher
    return "$status"
}

end_watcher() {
    [ -n "${WATCHER:-}" ] || return 0
    kill "$WATCHER" 2>/dev/null || true
    wait "$WATCHER" 2>/dev/null || true
    WATCHER=
}
