"""The download script: a POSIX shell script that brings links' files, resumes, verifies, and unpacks datablocks.

It holds presigned URLs, so it is as secret as they are (P8): it goes to the requester and nowhere else. Names come from users:
each is one quoted word of the script, and is only ever used with ``./`` before it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from archiver.datablock.files import check_path
from archiver.pids import pid_path

_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"https?://[!#-&(-\[\]-~]+")
"""What can be written into curl's configuration as it is: no quote, no backslash, no white space."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """A file to bring: its ``name`` below the dataset, or, to ``unpack``, a datablock that holds such files."""

    name: str
    size: int
    sha256: str
    url: str = field(repr=False)
    unpack: bool = False


def download_script(datasets: Iterable[tuple[str, Iterable[Fetch]]], *, valid_until: str = "") -> Iterator[str]:
    """The script, piece by piece; each dataset's files come into a folder named as its pid.

    Raises ``HostilePath`` for a name that no file can have, ``ValueError`` for a digest or a URL that is none (it names neither).
    """
    yield _HEAD.replace("@VALID_UNTIL@", shlex.quote(valid_until))
    total = 0
    for pid, fetches in datasets:
        yield f"folder={shlex.quote(pid_path(pid))}\n"
        for fetch in fetches:
            yield _call(fetch)
            total += 1
    yield f"ended_with {total}\n"


def _call(fetch: Fetch) -> str:
    check_path(fetch.name)
    _check(fetch)
    verb = "unpack" if fetch.unpack else "get"
    return f"{verb} {shlex.quote(fetch.name)} {int(fetch.size)} {fetch.sha256} {shlex.quote(fetch.url)}\n"


def short_script(sha256: str, url: str, *, valid_until: str = "") -> str:
    """A script of a few lines that brings the script at ``url``, checks it and runs it: what a result object can show.

    Raises ``ValueError`` for a digest or a URL that is none.
    """
    _check(Fetch("download.sh", 0, sha256, url))
    return _SHORT.replace("@URL@", shlex.quote(url)).replace("@SHA256@", sha256).replace("@VALID_UNTIL@", valid_until)


def _check(fetch: Fetch) -> None:
    if not _SHA256.fullmatch(fetch.sha256):
        raise ValueError(f"file {fetch.name[:200]!a} has a SHA-256 that is none")
    if not _URL.fullmatch(fetch.url):
        raise ValueError(f"file {fetch.name[:200]!a} has a URL that is none")


_SHORT = """#!/bin/sh
# Brings the script of all files, checks it, runs it. Works until @VALID_UNTIL@; keep it to yourself.
u=@URL@
s=@SHA256@
f=.archiver-$s.sh
same() { [ ! -h $f ] && { sha256sum $f || shasum -a 256 $f; } 2>/dev/null | grep -q "^$s "; }
same || { rm -f $f; printf 'url = "%s"\\n' "$u" | curl -fsS -o $f -K - || printf '%s\\n' "$u" | wget -qO $f -i -; }
if ! same; then
    rm -f $f
    echo 'error    the script cannot be brought (links work until @VALID_UNTIL@); next: submit a new retrieve job' >&2
    exit 1
fi
sh $f "$@" </dev/null
c=$?
[ $c -ne 0 ] || rm -f $f
exit $c
"""

_HEAD = r"""#!/bin/sh
# Brings the files of a SciCat retrieve job into the directory it is started in, or into the one given:
#     sh download.sh [DIRECTORY]
#     sh download.sh --list     only prints each file's size, SHA-256, name and link, for other programs
# It may be stopped and started again: what is here and right is kept, the rest is brought, each file's SHA-256 is checked.
# It ends with 0 only if everything is here and right. It needs curl or GNU wget, and sha256sum or shasum; for datablocks tar,
# and space for them and for their files.
# Who has this script can read the files: keep it to yourself.
set -u
valid_until=@VALID_UNTIL@
LC_ALL=C
export LC_ALL
unset CDPATH TAR_OPTIONS
work=.archiver-download
pause=${ARCHIVER_PAUSE:-2}
number=0 good=0 whole= locked= final=1 listing=

usage() {
    printf '%s\n' "Brings the files of a SciCat retrieve job, and checks each one's SHA-256." "" \
        "    sh download.sh [DIRECTORY]   into this directory, or the one given; may be stopped and started again" \
        "    sh download.sh --list        only prints size, SHA-256, name and link of each file" \
        "    sh download.sh --help" "" "${valid_until:+Links work until $valid_until. }Exit code 0: everything is here and right."
}
case ${1-} in
-h | --help) usage; exit 0 ;;
--list) listing=1 ;;
--) shift ;;
-*) printf '%s\n' "error    $1 is no option; next: sh download.sh --help" >&2; exit 2 ;;
esac

say() { printf '%s\n' "$1" >&2; }

give_up() { say "error    $1"; whole=1; exit 1; }

ended() {
    trap - EXIT
    if [ -n "$locked" ]; then
        rm -rf "./$work/running"
        rmdir "./$work" 2>/dev/null
    fi
    [ -n "$whole" ] || say "error    stopped before its end: start it again; if it stops here again, it is not whole: get it anew"
    exit "$final"
}
trap ended EXIT
trap 'final=130; exit 130' INT
trap 'final=143; exit 143' TERM HUP

ended_with() { # how many files there are in all
    whole=1
    if [ "$good" -eq "$1" ] && [ "$number" -eq "$1" ]; then
        [ -n "$listing" ] || printf '%s\n' "All $1 are here and right."
        [ -z "$unpacked" ] || printf '%s\n' "The datablocks in $work are no longer needed: they may be removed."
        final=0
    else
        say "error    $((number - good)) of $1 are not here, or not right: see above; what is here stays; start it again"
    fi
    exit "$final"
}
unpacked=

# --- the tools

if command -v curl >/dev/null 2>&1; then
    with=curl
elif command -v wget >/dev/null 2>&1; then
    with=wget
else
    give_up "neither curl nor wget is here; next: install one of them"
fi
if command -v sha256sum >/dev/null 2>&1; then
    digest() { sha256sum <"$1"; }
elif command -v shasum >/dev/null 2>&1; then
    digest() { shasum -a 256 <"$1"; }
else
    give_up "neither sha256sum nor shasum is here; next: install one of them"
fi
bytes() { if [ -f "$1" ]; then echo "$(($(wc -c <"$1")))"; else echo 0; fi; }
is() { # file, size, SHA-256
    [ ! -h "$1" ] && [ -f "$1" ] && [ "$(bytes "$1")" -eq "$2" ] && found=$(digest "$1") && [ "${found%% *}" = "$3" ]
}

# --- names: these functions are also run by a shell of their own, on what was unpacked

names='
there() { [ -e "$1" ] || [ -h "$1" ]; }
shown() { printf %s "$1" | tr "\000-\037\177" "[?*]"; }
folders() { # makes the folders of a file; none of them may be a link, which could lead elsewhere
    left=$1 at=.
    while :; do
        case $left in
        */*) at=$at/${left%%/*} left=${left#*/} ;;
        *) return 0 ;;
        esac
        if [ -h "$at" ]; then
            printf "%s\n" "error    $(shown "$at") is a link: nothing is written there; next: move it away, start again" >&2
            return 1
        fi
        [ -d "$at" ] || mkdir "$at" || return 1
    done
}
'
eval "$names"
place='
folder=$1 bad=0
shift
for from; do
    name=${from#./.archiver-download/unpacked/}
    to=./$folder/$name
    if [ -h "$from" ] || [ ! -f "$from" ]; then
        printf "%s\n" "error    $(shown "$name") in the datablock is no file: it is left out" >&2
        bad=1
    elif ! folders "$folder/$name"; then
        bad=1
    elif there "$to"; then
        if [ -h "$to" ] || [ ! -f "$to" ] || ! cmp -s "$from" "$to"; then
            printf "%s\n" "error    $(shown "$to"): another file of this name is here and stays; next: move it away" >&2
            bad=1
        fi
    elif ! ln "$from" "$to" 2>/dev/null; then
        if there "$to" || ! mv "$from" "$to"; then bad=1; fi
    fi
done
exit "$bad"
'

# --- bringing: a URL is handed over by a pipe, since every user of a machine sees the arguments of programs

transfer() { # URL, file that is continued; sets http and result
    if [ "$with" = curl ]; then
        bar=-s
        [ ! -t 2 ] || bar=-#
        http=$(printf 'url = "%s"\n' "$1" | curl $bar -S -f -g -C - -o "$2" -w '%{http_code}' --connect-timeout 30 \
            --speed-limit 1 --speed-time 120 -K -)
        result=$?
    else
        http=$(printf '%s\n' "$1" | wget -nv -c -O "$2" --tries=1 --timeout=120 --no-hsts -i - 2>&1)
        result=$?
        case $http in
        *'ERROR 403'* | *'response 403'*) http=403 ;;
        *'ERROR 404'* | *'response 404'*) http=404 ;;
        *'ERROR 4'* | *'response 4'*) http=400 ;;
        *) http=000 ;;
        esac
    fi
}

bring() { # URL, file, size, SHA-256: all its bytes, checked
    if [ -h "$2" ] || { [ -e "$2" ] && [ ! -f "$2" ]; }; then
        say "error    $what: $2 is in the way; next: remove it, start again"
        return 1
    fi
    tries=0 anew=0
    while :; do
        had=$(bytes "$2")
        if [ "$had" -eq "$3" ]; then
            [ "$3" -gt 0 ] || : >"$2" || return 1
            if is "$2" "$3" "$4"; then return 0; fi
            rm -f "$2"
            anew=$((anew + 1))
            if [ "$anew" -gt 1 ]; then
                say "error    $what: other bytes came than were archived, twice; they were removed; next: tell the archive"
                return 1
            fi
            continue
        fi
        if [ "$had" -gt "$3" ]; then rm -f "$2"; had=0; fi
        transfer "$1" "$2"
        now=$(bytes "$2")
        if [ "$now" -ne "$3" ]; then
            case $http in
            400 | 401 | 403)
                give_up "$what: its link does not work any more (status $http)${valid_until:+; links work until $valid_until}; \
what is here stays; next: submit a new retrieve job"
                ;;
            404 | 410)
                say "error    $what: it is no longer there (status $http); next: submit a new retrieve job"
                return 1
                ;;
            esac
            case $with$result in
            curl33) rm -f "$2" ;; # a server that cannot continue
            curl23 | wget3) give_up "$what: it cannot be written; next: see that there is space, start again" ;;
            esac
            if [ "$now" -gt "$had" ] && [ "$now" -lt "$3" ]; then tries=0; else tries=$((tries + 1)); fi
            if [ "$tries" -ge 5 ]; then
                say "error    $what: it cannot be brought (status $http, $with says $result); next: start again later"
                return 1
            fi
            sleep "$pause"
        fi
    done
}

list() { # name, size, SHA-256, URL
    number=$((number + 1)) good=$((good + 1))
    printf '%s\t%s\t%s\t%s\n' "$2" "$3" "$folder/$(shown "$1")" "$4"
}

get() { # name, size, SHA-256, URL
    if [ -n "$listing" ]; then list "$@"; return; fi
    number=$((number + 1))
    what="$folder/$(shown "$1")"
    to=./$folder/$1
    folders "$folder/$1" || return
    if there "$to"; then
        if is "$to" "$2" "$3"; then
            good=$((good + 1))
            printf '%s\n' "here     $what"
        else
            say "error    $what: another file of this name is here and stays; next: move it away, start again"
        fi
        return
    fi
    bring "$4" "./$work/$3.part" "$2" "$3" || return
    if ln "./$work/$3.part" "$to" 2>/dev/null; then
        rm -f "./$work/$3.part"
    elif there "$to" || ! mv "./$work/$3.part" "$to"; then
        say "error    $what: it cannot be put there"
        return
    fi
    good=$((good + 1))
    printf '%s\n' "brought  $what"
}

unpack() { # name, size, SHA-256, URL of a datablock
    if [ -n "$listing" ]; then list "$@"; return; fi
    number=$((number + 1))
    what="$folder/$(shown "$1")"
    command -v tar >/dev/null 2>&1 || give_up "tar is not here; next: install it"
    if ! is "./$work/$3" "$2" "$3"; then
        bring "$4" "./$work/$3.part" "$2" "$3" || return
        rm -f "./$work/$3"
        mv "./$work/$3.part" "./$work/$3" || return
    fi
    rm -rf "./$work/unpacked"
    mkdir "./$work/unpacked" || return
    # UTF-8, where there is such a locale: names are in it, and some tars would convert them.
    if ! LC_ALL=en_US.UTF-8 tar --no-same-owner --no-same-permissions -xf "./$work/$3" -C "./$work/unpacked" </dev/null; then
        say "error    $what: it cannot be unpacked; next: see that there is space, start again"
    elif find "./$work/unpacked" ! -type d -exec sh -c "$names$place" sh "$folder" {} + </dev/null; then
        good=$((good + 1)) unpacked=1
        printf '%s\n' "unpacked $what"
    else
        say "error    $what: not all of its files are in their places"
    fi
    rm -rf "./$work/unpacked"
}

# --- where

settle() { # the directory, or nothing
    if [ $# -gt 0 ]; then
        case $1 in
        /*) into=$1 ;;
        *) into=./$1 ;;
        esac
        mkdir -p "$into" && cd "$into" || give_up "the directory cannot be entered; next: give another"
    fi
    if [ -h "./$work" ] || [ -h "./$work/running" ]; then give_up "$work is a link; next: remove it, start again"; fi
    [ -d "./$work" ] || mkdir "./$work" || give_up "nothing can be written here; next: go to another directory"
    if ! mkdir "./$work/running" 2>/dev/null; then
        other=$(cat "./$work/running/process" 2>/dev/null)
        if [ -n "$other" ] && kill -0 "$other" 2>/dev/null; then
            give_up "another run (process $other) is at work here; \
next: wait for it (if it is none of these: rm -r $work/running)"
        fi
    fi
    locked=1
    rm -f "./$work/running/process"
    echo $$ >"./$work/running/process" || give_up "nothing can be written here; next: see that there is space"
}
[ -n "$listing" ] || settle "$@"

# --- the files

"""
