#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Checks a case of an impound evidence store, or a bag that holds one, without impound. Uses a POSIX
# shell, GNU coreutils and findutils, grep, sed and openssl; writes nothing but a temporary folder. It
# believes nothing that it was not able to recompute: every entry is checked, none is sampled.
#
# It does less than `impound verify`: see "not checked" below.
#
# Source: docs/format.md; https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint,
# RFC 9162 §2.1.3.2, RFC 8493.

# Patterns and names are put together by eval; printf makes bytes of escapes; `A && B || C` where C
# ends the check.
# shellcheck disable=SC2015,SC2034,SC2059,SC2154

not_checked='canonical form and whole schema of entries, manifests, segment lists and members.jsonl;
digests of all bytes in order; clocks. impound verify --linear checks these'

usage() {
  cat <<'END'
usage: sh verify.sh [-l] [-q] [-k FIRST_KEY_FINGERPRINT] [-r SIZE:ROOT] [CASE_DIR | BAG]

  CASE_DIR   <store>/cases/<case>
  BAG        folder of a bag; may be left out if this script lies in it
  -k         what the case sheet or ticket says of the first key (64 hex digits)
  -r         size and root of a receipt, which the ledger must contain
  -l         ledger, checkpoints and keys only: no items
  -q         quick: stored objects are checked for presence and size, their content is not read

Prints "note:" for what a reader should know, "BROKEN:" for what is not as recorded, and one last
line "OK ..." or "BROKEN ...". Exit status: 0 sound, 1 broken, 2 wrong use.

END
  printf 'Not checked: %s.\n' "$not_checked"
}

LC_ALL=C
OPENSSL_CONF=/dev/null
export LC_ALL OPENSSL_CONF
unset CDPATH
set -fu
newline='
'
dash=$(printf '\342\200\224 ')
zero_digest=0000000000000000000000000000000000000000000000000000000000000000

misuse() {
  printf 'verify.sh: %s\n' "$1" >&2
  usage >&2
  exit 2
}

is_hex() { # TEXT LENGTH
  [ "${#1}" -eq "$2" ] || return 1
  case $1 in *[!0-9a-f]*) return 1 ;; esac
}

is_number() { # without leading zero, below 10^16
  case $1 in 0 | [1-9]*) ;; *) return 1 ;; esac
  case $1 in *[!0-9]*) return 1 ;; esac
  [ "${#1}" -le 16 ]
}

quick='' only_ledger='' want_key='' want_receipt=''
while getopts lqk:r:h option; do
  case $option in
    l) only_ledger=1 ;;
    q) quick=1 ;;
    k) want_key=$(printf '%s' "$OPTARG" | tr A-F a-f)
       is_hex "$want_key" 64 || misuse '-k wants 64 hex digits' ;;
    r) want_receipt=$OPTARG
       is_number "${OPTARG%%:*}" && [ "${OPTARG#*:}" != "$OPTARG" ] || misuse '-r wants SIZE:ROOT' ;;
    h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))
case $0 in /*) own_folder=${0%/*}/ ;; */*) own_folder=./${0%/*} ;; *) own_folder=. ;; esac
script=$(cd "$own_folder" && pwd -P)/${0##*/}
if [ $# -eq 0 ] && [ -d "$own_folder/data" ]; then set -- "$own_folder"; fi
[ $# -eq 1 ] || misuse 'name one case folder, or one bag'
case $1 in /*) case_dir=$1 ;; *) case_dir=./$1 ;; esac
bag=''
if [ -f "$case_dir/bagit.txt" ] || { [ -d "$case_dir/data" ] && [ ! -d "$case_dir/ledger" ]; }; then
  bag=$(cd "$case_dir" && pwd -P) || misuse 'cannot enter the bag'
elif [ ! -d "$case_dir/ledger" ]; then
  misuse 'no ledger folder there: CASE_DIR is <store>/cases/<case>'
fi

work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM

findings=0
# What is printed may come from evidence: one line of printable ASCII.
say() { # WORD TEXT
  printf '%s\n' "$2" | tr '\n' ' ' | tr -c '[:print:]' '?' >"$work/line"
  IFS= read -r said <"$work/line" || :
  printf '%s %s\n' "$1" "${said% }"
}
broken() {
  findings=$((findings + 1))
  say BROKEN: "$1"
}
note() { say note: "$1"; }
each_is() { # FILE WORD SENTENCE: say it of each line of a list of names
  while IFS= read -r each; do "$2" "$each $3"; done <"$1"
}

sha256_file() { # -> $sha256
  sha256=$(sha256sum <"$1") || return 1
  sha256=${sha256%% *}
}

# Tell whether $1 is base64 that only one byte string has (a decoder accepts more than that).
strict_base64() {
  case $1 in '' | *[!A-Za-z0-9+/=]*) return 1 ;; esac
  [ $((${#1} % 4)) -eq 0 ] || return 1
  case $1 in
    *=*=*=* | *=[!=]*) return 1 ;;
    *==) case $1 in *[AQgw]==) ;; *) return 1 ;; esac ;;
    *=) case $1 in *[AEIMQUYcgkosw048]=) ;; *) return 1 ;; esac ;;
  esac
}

# Turn hex digits into the octal escapes of printf, so that a digest can be hashed again.
escapes_of_hex() { # HEX -> $escapes
  escapes='' hex_rest=$1
  while [ -n "$hex_rest" ]; do
    hex_tail=${hex_rest#??}
    hex_value=$((0x${hex_rest%"$hex_tail"}))
    hex_rest=$hex_tail
    escapes="$escapes\\$((hex_value >> 6))$((hex_value >> 3 & 7))$((hex_value & 7))"
  done
}

# -- the folder of a bag -----------------------------------------------------------------------------

end() { # the last line
  if [ "$findings" -gt 0 ]; then
    printf 'BROKEN %s findings in %s entries and %s items\n' "$findings" "$entries" "$checked"
    exit 1
  fi
}

listing() { # LIST START: its form; each line names another file that begins with START
  if [ "$(wc -l <"$1")" -ne "$(grep -a -c '' "$1")" ] || [ ! -s "$1" ] ||
    grep -a -v -q -x "[0-9a-f]\\{64\\}  $2[A-Za-z0-9_-][A-Za-z0-9._/-]*" "$1" ||
    grep -a -q -e '/[./]' -e '/$' "$1"; then
    broken "$1 has a line of no known form"; return 1
  fi
  sed 's/^.\{66\}//' "$1" | tr '[:upper:]' '[:lower:]' | sort >"$work/lower"
  if ! sort -c -u "$work/lower" 2>/dev/null; then broken "$1 names a file twice"; return 1; fi
}

compare_listing() { # LIST; wants the names present, sorted, in $work/there
  sed 's/^.\{66\}//' "$1" | sort >"$work/listed"
  comm -13 "$work/listed" "$work/there" >"$work/list"
  each_is "$work/list" broken "was added: $1 does not name it"
  comm -23 "$work/listed" "$work/there" >"$work/list"
  each_is "$work/list" broken 'is missing'
  if [ "$1" = manifest-sha256.txt ] && [ -n "$quick$only_ledger" ]; then return 0; fi
  sha256sum -c --strict --quiet --ignore-missing "$1" >"$work/list" 2>/dev/null ||
    { each_is "$work/list" broken "($1)"
      [ -s "$work/list" ] || broken "the files of $1 could not be checked"; }
}

check_bag() {
  find . -mindepth 1 -regextype posix-basic ! -regex './[A-Za-z0-9_-][A-Za-z0-9._/-]*' -printf 'x\n' \
    >"$work/list"
  find . -mindepth 1 -name '.*' -printf 'x\n' >>"$work/list"
  if [ -s "$work/list" ]; then broken 'something in the bag has a name that no export writes'; return 1; fi
  find . -mindepth 1 ! -type f ! -type d -printf '%P\n' | sort >"$work/list"
  each_is "$work/list" broken 'is a link or a special file'
  [ ! -s "$work/list" ] || return 1
  if [ ! -f bagit.txt ]; then
    broken 'bagit.txt is missing: this is no bag, or an export that did not end'; return 1
  fi
  printf 'BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n' >"$work/bagit"
  sha256_file "$work/bagit"
  wanted=$sha256
  sha256_file bagit.txt
  if [ "$sha256" != "$wanted" ]; then
    broken 'bagit.txt does not declare BagIt 1.0 in UTF-8'; return 1
  fi
  if [ -f fetch.txt ]; then
    broken 'fetch.txt names parts that lie elsewhere; such a bag is refused'; return 1
  fi
  for file in bag-info.txt manifest-sha256.txt tagmanifest-sha256.txt bag.note data/store.json; do
    if [ ! -f "$file" ]; then broken "$file is missing"; return 1; fi
  done
  listing tagmanifest-sha256.txt '' && listing manifest-sha256.txt data/ || return 1
  find . -type f ! -path './data/*' ! -path ./tagmanifest-sha256.txt ! -path ./bag.note -printf '%P\n' |
    sort >"$work/there"
  compare_listing tagmanifest-sha256.txt
  for file in bagit.txt bag-info.txt manifest-sha256.txt; do
    grep -q -x "[0-9a-f]*  $file" tagmanifest-sha256.txt ||
      broken "tagmanifest-sha256.txt does not name $file"
  done
  find data -type f -printf '%p\n' | sort >"$work/there"
  compare_listing manifest-sha256.txt
  total=0 number=0
  find data -type f -printf '%s\n' >"$work/list"
  while read -r size; do total=$((total + size)) number=$((number + 1)); done <"$work/list"
  info_says Payload-Oxum "$total.$number"
  sort manifest-sha256.txt >"$work/manifest"
  find data -mindepth 1 ! -path data/store.json ! -path data/cases ! -path 'data/cases/*' \
    ! -path data/raw ! -path 'data/raw/E*' -printf '%P\n' >"$work/list"
  each_is "$work/list" broken 'in data/ is nothing that an export writes'
  case_dir=$(find data/cases -mindepth 1 -maxdepth 1)
  case $case_dir in
    '' | *"$newline"*) broken 'data/cases does not hold one case'; return 1 ;;
  esac
  if [ ! -d "$case_dir/ledger" ]; then broken "$case_dir has no ledger"; return 1; fi
}

info_says() { # FIELD VALUE
  [ "$(sed -n "s/^$1: //p" "${bag:-.}/bag-info.txt" | tr -d '\000')" = "$2" ] ||
    broken "bag-info.txt does not say $1: $2"
}

# After the ledger: what is signed, and what is said beside it.
check_bag_says() {
  if [ -z "$export_id" ]; then broken 'no entry says that this was exported'; return 0; fi
  sha256_file "$bag/tagmanifest-sha256.txt"
  tags=$sha256 problem=''
  if ! read_note "$bag/bag.note" "$(stat -c %s "$bag/bag.note")"; then problem='not a signed note'
  elif check_signatures "$entry_kids" ''; then
    printf 'impound bag 1\n%s\n%s\n' "$export_id" "$tags" >"$work/bagit"
    sha256_file "$work/bagit"
    wanted=$sha256
    sha256_file "$work/text"
    problem='does not sign tagmanifest-sha256.txt as it is'
    if [ "$sha256" = "$wanted" ]; then problem=''; fi
  fi
  [ -z "$problem" ] || broken "bag.note: $problem"
  info_says Impound-Case "$case_id"
  info_says Impound-Export-Id "$export_id"
  info_says Impound-Entries "$entries"
  info_says Impound-First-Key "$first_key"
  if [ "$sealed" -gt 0 ]; then
    info_says Impound-Checkpoint-Size "$sealed"
    info_says Impound-Checkpoint-Root "$sealed_root"
  fi
  find "$bag/keys" -type f -printf '%f\n' 2>/dev/null | sort >"$work/list"
  while IFS= read -r file; do
    case " $listed_kids " in
      *" ${file%.pem} "*)
        if [ -f "keys/$file" ]; then
          sha256_file "keys/$file"
          wanted=$sha256
          sha256_file "$bag/keys/$file"
          [ "$sha256" = "$wanted" ] || broken "keys/$file is not the key that the case has"
        fi ;;
      *) broken "keys/$file is a key that the ledger does not name" ;;
    esac
  done <"$work/list"
}

check_raw() {
  [ -d "$bag/data/raw" ] || return 0
  find "$bag/data/raw" -type f -printf '%P\n' | sort >"$work/raw"
  while IFS= read -r file; do
    item=${file%%/*}
    case " $items " in
      *" $item "*) ;;
      *) broken "data/raw/$file is of no item"; continue ;;
    esac
    if [ "$file" != "$item/disk.raw" ]; then broken "data/raw/$file is nothing that an export writes"; continue; fi
    recorded "$item" "items/$item" content 2>/dev/null
    if [ -z "$sha256" ]; then
      note "data/raw/$file: no digest of all bytes was recorded to compare it with"
    elif ! grep -q -x -F "$sha256  data/raw/$file" "$bag/manifest-sha256.txt"; then
      broken "data/raw/$file is not what was acquired"
    fi
  done <"$work/raw"
}

# A set of items as `item.exported` writes it: E0001-E0003 E0007.
is_left_out() { # ITEM
  item_number=${1#E}
  while [ "${item_number#0}" != "$item_number" ]; do item_number=${item_number#0}; done
  for run in $left_out; do
    case $run in *[!0-9E-]*) continue ;; esac
    run_first=${run%%-*} run_last=${run##*-}
    run_first=${run_first#E} run_last=${run_last#E}
    case $run_first$run_last in '' | *[!0-9]*) continue ;; esac
    while [ "${run_first#0}" != "$run_first" ]; do run_first=${run_first#0}; done
    while [ "${run_last#0}" != "$run_last" ]; do run_last=${run_last#0}; done
    if [ "${item_number:-0}" -ge "${run_first:-0}" ] && [ "${item_number:-0}" -le "${run_last:-0}" ]; then
      return 0
    fi
  done
  return 1
}

entries=0 checked=0 export_id='' left_out=''
if [ -n "$bag" ]; then
  cd "$bag" || misuse 'cannot enter the bag'
  check_bag || { end; exit 1; }
fi
cd "$case_dir" || misuse 'cannot enter the case folder'
case_id=$(pwd -P)
case_id=${case_id##*/}

# -- one entry's JSON ------------------------------------------------------------------------------
#
# Reads one line of RFC 8785 JSON token by token. What lies deeper than the fields asked for is
# passed over, so that a free-form field cannot pass for one of them. Strings stay as they are
# written (escaped); `plain` turns them back.

read_entry() { # TEXT -> $e_* ; $e_keys, $e_objects: one line each: "a b c name"
  e_action='' e_item='' e_origin='' e_prev='' e_seq='' e_store='' e_keys='' e_objects='' e_v=''
  json_rest=$1 json_depth=0 json_key='' json_inner='' json_word=''
  o_kid='' o_sha256='' o_use='' o_name='' o_uri='' o_as='' o_size=''
  e_export_id='' e_left_out='' e_received='' e_their_size='' e_their_root='' e_their_key=''
  while :; do
    json_gap=${json_rest%%\"*}
    json_more=1
    if [ "$json_gap" = "$json_rest" ]; then json_more=''; fi
    json_string=''
    while [ -n "$json_gap" ]; do
      json_tail=${json_gap#?}
      json_char=${json_gap%"$json_tail"}
      json_gap=$json_tail
      case $json_char in
        '{' | '[') json_depth=$((json_depth + 1)) json_word='' ;;
        '}' | ']')
          json_atom
          json_depth=$((json_depth - 1))
          if [ "$json_char$json_depth" = '}2' ]; then json_record; fi ;;
        ,) json_atom ;;
        :) json_word='' ;;
        *) json_word=$json_word$json_char ;;
      esac
    done
    [ -n "$json_more" ] || break
    # A string: up to the next quote that an even number of backslashes precedes.
    json_rest=${json_rest#*\"}
    json_string=''
    while :; do
      json_part=${json_rest%%\"*}
      [ "$json_part" != "$json_rest" ] || return 1
      json_rest=${json_rest#*\"}
      json_string=$json_string$json_part
      json_slashes=${json_part##*[!\\]}
      [ $((${#json_slashes} % 2)) -eq 1 ] || break
      json_string=$json_string\"
    done
    case $json_rest in
      :*) if [ "$json_depth" -eq 1 ]; then json_key=$json_string; fi
          json_inner=$json_string ;;
      *) json_value "$json_string" \" ;;
    esac
  done
  [ "$json_depth" -eq 0 ]
}

json_atom() { # a number or a word ended
  if [ -n "$json_word" ]; then json_value "$json_word" ''; fi
  json_word=''
}

json_value() { # VALUE QUOTE
  case $json_depth.$json_key in
    1.action) e_action=$1 ;;
    1.item) e_item=$1 ;;
    1.origin) e_origin=$1 ;;
    1.prev) e_prev=$1 ;;
    1.seq) e_seq=$1 ;;
    1.v) e_v=$1 ;;
    2.data)
      case $json_inner in
        export_id) e_export_id=$1 ;;
        left_out) e_left_out=$1 ;;
      esac ;;
    3.data) # of `received`: no other object in `data` has these fields
      case $json_inner in
        size) e_their_size=$1 ;;
        root) e_their_root=$1 ;;
        first_key) e_their_key=$1 ;;
      esac ;;
    2.store) e_store="$e_store,\"$json_inner\":$2$1$2" ;;
    3.keys | 3.objects)
      case $json_inner in
        kid) o_kid=$1 ;;
        sha256) o_sha256=$1 ;;
        use) o_use=$1 ;;
        name) o_name=$1 ;;
        uri) o_uri=$1 ;;
        as) o_as=$1 ;;
        size) o_size=$1 ;;
      esac ;;
  esac
}

json_record() { # an object in a list ended
  case $json_key in
    keys) e_keys="$e_keys$o_kid $o_sha256 $o_use $o_name$newline" ;;
    objects) e_objects="$e_objects$o_as $o_sha256 $o_size $o_uri$newline" ;;
  esac
  o_kid='' o_sha256='' o_use='' o_name='' o_uri='' o_as='' o_size=''
}

plain() { # JSON STRING -> $plain; canonical text here escapes only \ and "
  plain='' plain_rest=$1
  while :; do
    case $plain_rest in *\\*) ;; *) break ;; esac
    plain=$plain${plain_rest%%\\*}
    plain_rest=${plain_rest#*\\}
    plain_tail=${plain_rest#?}
    plain=$plain${plain_rest%"$plain_tail"}
    plain_rest=$plain_tail
  done
  plain=$plain$plain_rest
}

# -- keys ------------------------------------------------------------------------------------------

entry_kids='' checkpoint_kids='' listed_kids='' first_key=''

# Read keys/KID.pem: P-256, canonical PEM; leave its fingerprint in $sha256.
load_key() { # KID
  pem=keys/$1.pem
  if [ -h "$pem" ] || [ ! -f "$pem" ]; then problem="$pem is missing"; return 1; fi
  pem_data=''
  { IFS= read -r pem_begin && IFS= read -r pem_data; } <"$pem" || :
  case $pem_data in
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE*) ;;
    *) problem="$pem is not a P-256 public key"; return 1 ;;
  esac
  if ! openssl pkey -pubin -in "$pem" -pubout -outform DER -out "$work/der" 2>/dev/null; then
    problem="$pem is not a public key"; return 1
  fi
  { echo '-----BEGIN PUBLIC KEY-----'; base64 -w 64 "$work/der"; echo '-----END PUBLIC KEY-----'; } \
    >"$work/pem"
  sha256_file "$pem"
  pem_sha256=$sha256
  sha256_file "$work/pem"
  if [ "$sha256" != "$pem_sha256" ]; then problem="$pem is not in canonical form"; return 1; fi
  cp "$work/pem" "$work/$1.pem"
  sha256_file "$work/der"
}

# Take the keys that a verified entry lists.
add_keys() {
  printf '%s' "$e_keys" >"$work/keys"
  while IFS=' ' read -r kid listed use name; do
    if ! is_hex "$kid" 8 || ! is_hex "$listed" 64; then problem='a listed key is malformed'; return 1; fi
    load_key "$kid" || return 1
    if [ "$sha256" != "$listed" ]; then
      problem="keys/$kid.pem is not the key that was listed"; return 1
    fi
    eval "revoked=\${revoked_$kid:-}"
    if [ -n "$revoked" ]; then problem="key $kid was revoked; it cannot be added again"; return 1; fi
    case $listed_kids in *"$kid"*) ;; *) eval "listed_$kid=$seq" ;; esac
    listed_kids="$listed_kids $kid"
    # The first 5 characters of base64(kid || signature), and a class for the 6th.
    escapes_of_hex "$kid"
    code=$(printf "$escapes" | base64)
    start=${code%???}
    case ${code%==} in
      *A) class='[A-P]' ;;
      *Q) class='[Q-Za-f]' ;;
      *g) class='[g-v]' ;;
      *w) class='[w-z0-9+/]' ;;
    esac
    eval "pattern_$kid=\$start\$class"
    plain "$name"
    case $use in
      entry) eval "name_$kid=\$plain"
             case " $entry_kids " in *" $kid "*) ;; *) entry_kids="$entry_kids $kid" ;; esac ;;
      checkpoint) case " $checkpoint_kids " in *" $kid "*) ;; *) checkpoint_kids="$checkpoint_kids $kid" ;; esac ;;
    esac
    : "${first_key:=$listed}"
  done <"$work/keys"
}

revoke_keys() {
  printf '%s' "$e_keys" >"$work/keys"
  while IFS=' ' read -r kid listed use name; do
    is_hex "$kid" 8 || continue
    eval ": \"\${revoked_$kid:=$seq}\""
    left=''
    for other in $entry_kids; do [ "$other" = "$kid" ] || left="$left $other"; done
    entry_kids=$left
  done <"$work/keys"
}

# -- notes -----------------------------------------------------------------------------------------

# Split a signed note; leave the signed text in $work/text, signature lines in $signatures.
read_note() { # FILE SIZE
  signatures='' note_size=0 note_part=text
  : >"$work/text"
  while IFS= read -r note_line; do
    note_size=$((note_size + ${#note_line} + 1))
    if [ -z "$note_line" ]; then
      [ "$note_part" = text ] && [ "$note_size" -gt 1 ] || return 1
      note_part=signatures
    elif [ "$note_part" = text ]; then
      printf '%s\n' "$note_line" >&3
    else
      signatures=$signatures$note_line$newline
    fi
  done <"$1" 3>>"$work/text"
  # `read` drops NUL bytes and an unfinished last line: then the sizes differ.
  [ -n "$signatures" ] && [ "$note_size" -eq "$2" ] && [ "$2" -le 16384 ]
}

# Check the signature lines over $work/text. Unknown keys are ignored, one bad signature of a known
# key rejects the note, and at least one good one is wanted.
check_signatures() { # KIDS NAME: the name every key must sign with; "" if each has its own
  good=''
  signature_rest=$signatures
  while [ -n "$signature_rest" ]; do
    line=${signature_rest%%"$newline"*}
    signature_rest=${signature_rest#*"$newline"}
    case $line in
      "$dash"?*' '*) ;;
      *) problem='malformed signature line'; return 1 ;;
    esac
    line=${line#"$dash"}
    signer=${line%% *}
    code=${line#* }
    if [ -z "$signer" ] || ! strict_base64 "$code" || [ "${#code}" -lt 8 ]; then
      problem='malformed signature line'; return 1
    fi
    case $code in ??????==) problem='malformed signature line'; return 1 ;; esac
    for kid in $1; do
      eval "pattern=\$pattern_$kid"
      case $code in $pattern*) ;; *) continue ;; esac
      if [ -n "$2" ]; then name=$2; else eval "name=\$name_$kid"; fi
      if [ "$signer" != "$name" ]; then problem="key $kid signs with another name"; return 1; fi
      printf '%s' "$code" >"$work/code"
      base64 -d "$work/code" | tail -c +5 >"$work/signature"
      if ! openssl dgst -sha256 -verify "$work/$kid.pem" -signature "$work/signature" \
        "$work/text" >/dev/null 2>&1; then
        problem="bad signature of key $kid"; return 1
      fi
      good=$kid
    done
  done
  if [ -z "$good" ]; then problem='signed by no key that this case allows'; return 1; fi
}

# -- the ledger ------------------------------------------------------------------------------------

# Names are compared before anything is listed by line: an odd name could hold a newline.
digit16=$(printf '[0-9]%.0s' 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6)
find ledger -mindepth 1 ! -type d ! '(' -type f -path "ledger/$digit16.note" ')' >"$work/list"
each_is "$work/list" broken 'is not an entry of the ledger'

find ledger -maxdepth 1 -type f -name "$digit16.note" -printf '%f %s\n' | sort >"$work/entries"
# One process for many files; the names are digits only.
sed 's/ .*//; s,^,ledger/,' "$work/entries" | xargs -r sha256sum -- >"$work/digests"

items='' problem=''
check_entry() { # FILE SIZE
  if ! read_note "$1" "$2"; then problem='not a signed note'; return 1; fi
  {
    IFS= read -r text
    ! IFS= read -r more
  } <"$work/text" || { problem='not exactly one line'; return 1; }
  if [ "${#text}" -gt 4095 ]; then problem='longer than 4096 bytes'; return 1; fi
  if [ "$seq" -gt 0 ]; then check_signatures "$entry_kids" '' || return 1; fi
  if ! read_entry "$text"; then problem='not JSON'; return 1; fi
  if [ "$e_v" != 1 ]; then problem='of another version'; return 1; fi
  if [ "$e_seq" != "$seq" ]; then problem="says it is entry $e_seq"; return 1; fi
  if [ "$e_prev" != "$prev" ]; then
    problem='does not continue the entry before it (prev differs)'; return 1
  fi
  if [ "$seq" -eq 0 ]; then
    if [ "$e_action" != case.opened ]; then problem='does not open the case'; return 1; fi
    plain "$e_origin"
    origin=$e_origin origin_text=$plain
    case $origin_text in
      */cases/"$case_id") ;;
      *) note "the folder is called $case_id, the case $origin_text" ;;
    esac
    store=$e_store
    add_keys && check_signatures "$entry_kids" '' || return 1
    # The fingerprint that people compare must be of the key that vouches for the rest.
    first_kid=${first_key%"${first_key#????????}"}
    case " $entry_kids " in *" $first_kid "*) ;; *) first_kid= ;; esac
    if [ -z "$first_kid" ] || ! check_signatures "$first_kid" ''; then
      problem='is not signed by the first key that it lists'; return 1
    fi
    return 0
  fi
  if [ "$e_origin" != "$origin" ]; then problem="belongs to $e_origin"; return 1; fi
  case $e_action in
    case.opened) problem='opens the case again'; return 1 ;;
    key.added) add_keys || return 1 ;;
    key.revoked) revoke_keys ;;
  esac
}

# Which items there are; the first item.identified and item.acquired of an item count.
fold_entry() {
  case $e_item in E[0-9]*) ;; *) return 0 ;; esac
  case ${e_item#E} in *[!0-9]*) return 0 ;; esac
  eval "state=\${state_$e_item:-}"
  place=items/$e_item
  case $state.$e_action in
    .item.received)
      [ -n "$e_objects" ] && [ -n "$e_their_root" ] || return 0
      place=received/cases/$case_id/items/$e_item
      items="$items $e_item"; state=complete; printf '%s' "$e_objects" >"$work/objects.$e_item" ;;
    .item.identified) items="$items $e_item"; state=identified ;;
    .*) return 0 ;;
    complete.item.disposed | *.item.disposed) state=disposed ;;
    complete.* | disposed.*) return 0 ;;
    *.acquire.started) state=interrupted ;;
    *.acquire.failed) state=failed ;;
    *.item.acquired) state=complete; printf '%s' "$e_objects" >"$work/objects.$e_item" ;;
  esac
  eval "state_$e_item=\$state; : \"\${place_$e_item:=$place}\""
}

# What the whole case says of exports and deliveries.
fold_case() {
  case $e_action in
    item.exported)
      if [ -n "$e_export_id" ]; then export_id=$e_export_id left_out=$e_left_out; fi ;;
    case.opened)
      if [ -n "$e_their_root" ]; then continues=''; fi ;;
    item.received)
      if [ -n "$e_their_root" ] && [ -z "$e_item" ]; then
        deliveries="$deliveries $e_their_size:$e_their_root:$e_their_key"
      fi ;;
  esac
}

continues=/none deliveries=''  # of a case that came in a bag: empty
seq=0 prev=$zero_digest origin='' origin_text='' store='' stopped=''
exec 4<"$work/entries" 5<"$work/digests"
while IFS=' ' read -r file size <&4; do
  read -r digest _ <&5 || :
  expected=000000000000000$seq
  while [ "${#expected}" -gt 16 ]; do expected=${expected#0}; done
  if [ "$file" != "$expected.note" ]; then
    broken "ledger entry $seq is missing; the next is $file"; stopped=1; break
  fi
  if ! check_entry "ledger/$file" "$size"; then
    broken "ledger entry $seq: $problem"; stopped=1; break
  fi
  fold_entry
  fold_case
  prev=$digest
  seq=$((seq + 1))
done
exec 4<&- 5<&-
entries=$seq
if [ "$entries" -eq 0 ] && [ -z "$stopped" ]; then broken 'there is no ledger entry 0'; fi

if [ -n "$want_key" ] && [ "$first_key" != "$want_key" ]; then
  broken "the case was opened with the key ${first_key:-none}, not with $want_key"
fi

# -- store.json and keys/ --------------------------------------------------------------------------

if [ -h ../../store.json ] || [ ! -f ../../store.json ]; then
  broken 'store.json is missing two folders above the case: copy it along with the case'
elif [ "$entries" -gt 0 ]; then
  printf '{%s}\n' "${store#,}" >"$work/store"
  sha256_file "$work/store"
  wanted=$sha256
  if ! sha256_file ../../store.json || [ "$sha256" != "$wanted" ]; then
    broken 'store.json is not the store in which the case was opened'
  fi
fi

if [ "$entries" -gt 0 ]; then
  find keys -mindepth 1 ! -type d ! '(' -type f -path 'keys/????????.pem' ')' >"$work/list" 2>/dev/null
  each_is "$work/list" broken 'is not a key of the case'
  find keys -maxdepth 1 -type f -name '????????.pem' -printf '%f\n' >"$work/list" 2>/dev/null
  while IFS= read -r file; do
    case " $listed_kids " in
      *" ${file%.pem} "*) ;;
      *) # It has no power; an append that was refused or interrupted leaves one.
         if [ -z "$stopped" ]; then
           kid=${file%.pem}
           if is_hex "$kid" 8 && load_key "$kid" && [ "${sha256%"${sha256#????????}"}" = "$kid" ]; then
             note "keys/$file is not logged: a key that the ledger does not name"
           else
             broken "keys/$file is not a key of the case"
           fi
         fi ;;
    esac
  done <"$work/list"
fi

# -- checkpoints -----------------------------------------------------------------------------------

# Fold an inclusion proof (RFC 9162 §2.1.3.2) from the last leaf of SIZE entries; leave $value (hex).
fold_proof() { # LEAF SIZE PROOF_FILE
  value=$1
  fn=$(($2 - 1)) sn=$(($2 - 1))
  while IFS= read -r step; do
    if [ "${#step}" -ne 44 ] || ! strict_base64 "$step"; then problem='malformed proof'; return 1; fi
    if [ "$sn" -eq 0 ]; then problem='inclusion proof is too long'; return 1; fi
    step=$(printf '%s' "$step" | base64 -d | od -An -v -tx1 | tr -d ' \n')
    escapes_of_hex "$step"
    step=$escapes
    escapes_of_hex "$value"
    if [ $((fn & 1)) -eq 1 ] || [ "$fn" -eq "$sn" ]; then
      value=$(printf "\\001$step$escapes" | sha256sum)
      while [ $((fn & 1)) -eq 0 ] && [ "$fn" -ne 0 ]; do fn=$((fn >> 1)) sn=$((sn >> 1)); done
    else
      value=$(printf "\\001$escapes$step" | sha256sum)
    fi
    value=${value%% *}
    fn=$((fn >> 1)) sn=$((sn >> 1))
  done <"$3"
  if [ "$sn" -ne 0 ]; then problem='inclusion proof is too short'; return 1; fi
}

check_checkpoint() { # FOLDER SIZE -> $root
  if ! read_note "$1/log.note" "$(stat -c %s "$1/log.note")"; then problem='not a signed note'; return 1; fi
  kids=''
  for kid in $checkpoint_kids; do
    eval "listed=\$listed_$kid revoked=\${revoked_$kid:-\$2}"
    if [ "$listed" -lt "$2" ] && [ "$2" -le "$revoked" ]; then kids="$kids $kid"; fi
  done
  check_signatures "$kids" "$origin_text" || return 1
  {
    IFS= read -r said_origin && IFS= read -r said_size && IFS= read -r root && ! IFS= read -r more
  } <"$work/text" || { problem='malformed checkpoint'; return 1; }
  if [ "$said_origin" != "$origin_text" ]; then problem="speaks of $said_origin"; return 1; fi
  if [ "$said_size" != "$2" ]; then problem="says $said_size entries, its folder $2"; return 1; fi
  if [ "${#root}" -ne 44 ] || ! strict_base64 "$root"; then problem='malformed root'; return 1; fi
  if [ "$2" -gt "$entries" ]; then
    if [ -n "$stopped" ]; then problem='could not be compared: the ledger is broken before its end'
    else problem="says the ledger has $2 entries, but there are $entries: the end was removed"; fi
    return 1
  fi
  if [ -h "$1/last.proof" ] || [ ! -f "$1/last.proof" ]; then problem='last.proof is missing'; return 1; fi
  # `read` drops NUL bytes and an unfinished line: a proof is whole lines of 45 bytes.
  if grep -a -q -v -x '[A-Za-z0-9+/]*=' "$1/last.proof" ||
    [ $(($(stat -c %s "$1/last.proof") - 45 * $(wc -l <"$1/last.proof"))) -ne 0 ]; then
    problem='last.proof is malformed'; return 1
  fi
  last=000000000000000$(($2 - 1))
  while [ "${#last}" -gt 16 ]; do last=${last#0}; done
  leaf=$({ printf '\000'; cat "ledger/$last.note"; } | sha256sum)
  fold_proof "${leaf%% *}" "$2" "$1/last.proof" || return 1
  escapes_of_hex "$value"
  if [ "$(printf "$escapes" | base64 -w 0)" != "$root" ]; then
    problem="the first $2 entries are not those that were sealed"; return 1
  fi
}

sealed=0 sealed_root='' receipt_found=''
if [ "$entries" -gt 0 ] && [ -d checkpoints ]; then
  find checkpoints -mindepth 1 ! -type d ! '(' -type f \
    '(' -path "checkpoints/$digit16/log.note" -o -path "checkpoints/$digit16/last.proof" ')' ')' \
    >"$work/list"
  each_is "$work/list" broken 'is not part of a checkpoint'
  find checkpoints -mindepth 2 -maxdepth 2 -type f -path "checkpoints/$digit16/*" \
    -printf '%h\n' | sort -u >"$work/list"
  while IFS= read -r folder; do
    if [ -h "$folder/log.note" ] || [ ! -f "$folder/log.note" ]; then
      note "$folder: a checkpoint was begun and not finished"; continue
    fi
    size=${folder#checkpoints/}
    while [ "${size#0}" != "$size" ]; do size=${size#0}; done
    : "${size:=0}"
    if [ "$size" -eq 0 ]; then broken "$folder: a checkpoint of nothing"; continue; fi
    if ! check_checkpoint "$folder" "$size"; then broken "$folder: $problem"; continue; fi
    sealed=$size sealed_root=$root
    if [ "$size:$root" = "$want_receipt" ]; then receipt_found=1; fi
  done <"$work/list"
fi
if [ -n "$want_receipt" ] && [ -z "$receipt_found" ]; then
  broken "no checkpoint says $want_receipt, as the receipt does: cut off, rolled back or another case"
fi
if [ "$sealed" -lt "$entries" ]; then
  note "$((entries - sealed)) entries are not sealed by a checkpoint; cutting them off would not be noticed"
fi

# -- items -----------------------------------------------------------------------------------------

recorded() { # ITEM URI AS -> $sha256, empty if there is none
  sha256=''
  while IFS=' ' read -r as object_sha256 _ uri; do
    if [ "$as $uri" = "$3 $2" ]; then sha256=$object_sha256; break; fi
  done <"$work/objects.$1"
}

check_recorded() { # ITEM NAME
  recorded "$1" "$place/$2" stored
  wanted=$sha256
  if [ -z "$wanted" ]; then broken "item $1: the ledger names no $2"; return 1; fi
  if [ -h "$place/$2" ] || [ ! -f "$place/$2" ]; then broken "$place/$2 is missing"; return 1; fi
  sha256_file "$place/$2"
  if [ "$sha256" != "$wanted" ]; then broken "$place/$2 is not what was recorded"; return 1; fi
}

manifest_field() { # ITEM PATTERN -> $field; the pattern must occur once
  field=$(grep -a -o "$2" "$place/manifest.json")
  case $field in '' | *"$newline"*) return 1 ;; esac
}

# What the manifest says beside the list: field order is that of canonical JSON, so that neighbours
# tell a field of the manifest from one of the same name inside `source`.
check_manifest() { # ITEM; wants the globals of check_item
  manifest=$place/manifest.json
  if [ "$(wc -l <"$manifest")" -ne 1 ] || [ "$(grep -a -c '' "$manifest")" -ne 1 ]; then
    broken "$manifest is not one line"; return 0
  fi
  two_minds="$manifest and its segment list disagree on"
  manifest_field "$1" '"result":"[a-z]*","segment_size":[0-9]*,"size":[0-9]*,"source":{' || field=''
  case $field in
    '"result":"'*'","segment_size":'"$segment_size,\"size\":$list_size,"*) ;;
    *) broken "$two_minds size or segment size" ;;
  esac
  manifest_field "$1" '"stored_bytes":[0-9]*,"stored_objects":[0-9]*,"tool":{' || field=''
  [ "$field" = "\"stored_bytes\":$stored_bytes,\"stored_objects\":$stored_count,\"tool\":{" ] ||
    broken "$two_minds what is stored"
  manifest_field "$1" '"unreadable_bytes":[0-9]*,"unreadable_ranges":[0-9]*,"v":1}$' || field=''
  case $field in
    "\"unreadable_bytes\":$unreadable,"*) ;;
    *) broken "$two_minds what was unreadable" ;;
  esac
  manifest_field "$1" '"ended":"[^"]*","holes_bytes":[0-9]*,"host":{' || field=''
  case $field in
    *",\"holes_bytes\":$holes_bytes,"*) ;;
    *) broken "$two_minds how much is zero" ;;
  esac
  manifest_field "$1" "^{\"case\":\"$case_json\",\"content\":[^}]*}\\{0,1\\},\"content_absent\":" ||
    { broken "$manifest does not say what its digest is"; return 0; }
  stated=''
  case $field in *'"sha256":"'*) stated=${field#*'"sha256":"'} stated=${stated%%\"*} ;; esac
  recorded "$1" "$place" content
  [ "$stated" = "$sha256" ] || broken "item $1: its manifest and its entry state different linear digests"
  case $layout.$segment_size.$field in
    '"set".0.'*'"content":null,'* | '"image".'[1-9]*) ;;
    *) broken "$manifest contradicts itself: it is no $layout" ;;
  esac
}

# Every segment exactly once: stored, in a hole, or absent inside one unreadable range. All is sorted.
account_for() { # LIST; leaves $problem
  sed -n -e 's|^[0-9a-f]\{64\}  data/\([0-9a-f]\{16\}\)$|\1 1|p' -e 's/^# hole //p' "$1" >"$work/runs"
  if [ "$(wc -l <"$work/runs")" -ne "$(grep -c -v '^# [^h]' "$1")" ]; then
    problem='lists an object that is no segment'; return 1
  fi
  sed -n 's/^# unreadable //p' "$1" >"$work/gaps"
  count=$(((list_size + segment_size - 1) / segment_size))
  printf '%016x 0\n' "$count" >>"$work/runs"
  at=0 gap=0 gap_end=0
  while read -r first length <&6; do
    first=$((0x$first))
    # A number beyond 2^63 is negative in one shell and the largest in another.
    if [ "$first" -lt "$at" ] || [ "$first" -gt "$count" ] || [ $((first + length)) -gt "$count" ]; then
      problem='lists a segment twice, out of order or beyond the end'; return 1
    fi
    start=$((at * segment_size)) end=$((first * segment_size))
    if [ "$end" -gt "$list_size" ]; then end=$list_size; fi
    while [ "$first" -gt "$at" ] && [ "$gap_end" -lt "$end" ] && read -r next next_length <&7; do
      gap=$next gap_end=$((next + next_length))
    done
    if [ "$first" -gt "$at" ] && { [ "$gap" -gt "$start" ] || [ "$gap_end" -lt "$end" ]; }; then
      problem="does not account for segment $at"; return 1
    fi
    at=$((first + length))
  done 6<"$work/runs" 7<"$work/gaps"
}

# Totals that follow from the list: $stored_count, $stored_bytes, $holes_bytes, $unreadable.
count_list() { # LIST
  stored_count=$(wc -l <"$work/expected.names")
  stored_count=$((stored_count)) holes_bytes=0 unreadable=0
  sed -n 's/^# unreadable [0-9]* //p' "$1" >"$work/list"
  while read -r length; do unreadable=$((unreadable + length)); done <"$work/list"
  if [ "$segment_size" -eq 0 ]; then stored_bytes=$list_size; return 0; fi
  # The last segment may be shorter, stored or in a hole.
  short=$((segment_size - last_length))
  stored_bytes=$((stored_count * segment_size))
  if grep -q -x "$last_name" "$work/expected.names"; then stored_bytes=$((stored_bytes - short)); fi
  sed -n 's/^# hole //p' "$1" >"$work/list"
  while read -r first length; do
    holes_bytes=$((holes_bytes + length * segment_size))
    if [ $((0x$first + length)) -eq "$count" ]; then holes_bytes=$((holes_bytes - short)); fi
  done <"$work/list"
}

# Every object of a set in one line of members.jsonl, with its digest and size. Keys are sorted there
# and quotes in texts escaped, so an unescaped "object": is the field and nothing else.
check_members() { # ITEM
  members=$place/members.jsonl
  if ! manifest_field "$1" '"layout":"set","members":{"count":[0-9]*,"sha256":"[0-9a-f]*","size":[0-9]*}'; then
    broken "$place/manifest.json names no members.jsonl"; return 0
  fi
  wanted=${field#*\"sha256\":\"}
  wanted=${wanted%%\"*}
  promised=${field#*\"count\":}
  promised=${promised%%,*}
  wanted_size=${field##*\"size\":}
  if [ -h "$members" ] || [ ! -f "$members" ]; then broken "$members is missing"; return 0; fi
  sha256_file "$members"
  if [ "$sha256 $(stat -c %s "$members")}" != "$wanted $wanted_size" ]; then
    broken "$members is not what was recorded"; return 0
  fi
  lines=$(grep -a -c '' "$members")
  [ "$lines" = "$promised" ] || broken "$members has $lines lines, recorded $promised"
  sed -n 's|^{.*"object": "\([0-9a-z._/-]*\)", "sha256": "\([0-9a-f]\{64\}\)", "size": \([0-9]*\)[,}].*|\2  data/\1 \3|p' \
    "$members" >"$work/named"
  if [ $(($(wc -l <"$work/named") + $(grep -a -c '"object": null[,}]' "$members"))) -ne "$lines" ] ||
    [ "$(wc -l <"$members")" -ne "$lines" ] || grep -a -q '[^ -~]' "$members" ||
    grep -a -q -v '^{.*"name": ".*}$' "$members" || grep -a -q '"object": .*"object": ' "$members"; then
    broken "$members has lines of no known form"
  fi
  sed 's/ [0-9]*$//' "$work/named" | sort >"$work/named.digests"
  grep -a '^[0-9a-f]\{64\}  ' "$place/segments.sha256" | sort >"$work/listed"
  comm -23 "$work/named.digests" "$work/listed" >"$work/list"
  each_is "$work/list" broken "(members.jsonl of item $1) is not in the segment list, or stands twice"
  comm -13 "$work/named.digests" "$work/listed" >"$work/list"
  each_is "$work/list" broken "is not in members.jsonl of item $1"
  sed 's/^[0-9a-f]*  //' "$work/named" | sort | comm -23 - "$work/present" >"$work/list"
  each_is "$work/list" broken "(members.jsonl of item $1) is another size than that of the object"
}

check_item() { # ITEM
  eval "place=\$place_$1"
  check_recorded "$1" manifest.json && check_recorded "$1" segments.sha256 || return 0
  if [ -n "$bag" ] && is_left_out "$1"; then
    find "$place/data" -type f -printf 'x\n' 2>/dev/null >"$work/list"
    if [ ! -s "$work/list" ]; then
      checked=$((checked - 1))
      note "item $1 is not in this bag: it was left out of the export"; return 0
    fi
  fi
  item_folder=$place list=$place/segments.sha256
  case_json=${origin##*/}
  manifest_field "$1" "^{\"case\":\"$case_json\"," &&
    manifest_field "$1" "\"image_root\":\"$sha256\",\"item\":\"$1\",\"kind\":\"[a-z]*\",\"layout\":\"[a-z]*\"" ||
    { broken "$place/manifest.json describes another item"; return 0; }
  layout=${field##*:}
  if [ "$layout" = '"image"' ] && ! manifest_field "$1" '"layout":"image","members":null,"method":'; then
    broken "$place/manifest.json contradicts itself: an image has no members"
  fi
  list_size=$(sed -n '2s/^# size //p' "$list")
  segment_size=$(sed -n '3s/^# segment-size //p' "$list")
  if ! is_number "$list_size" || ! is_number "$segment_size" ||
    [ "$(sed -n 1p "$list")" != '# impound segments 1' ] ||
    sed 1,3d "$list" | grep -a -v -q -x -e '[0-9a-f]\{64\}  data/[0-9a-z_-][0-9a-z._/-]*' \
      -e '# hole [0-9a-f]\{16\} [1-9][0-9]\{0,15\}' -e '# unreadable 0 [1-9][0-9]\{0,15\}' \
      -e '# unreadable [1-9][0-9]\{0,15\} [1-9][0-9]\{0,15\}'; then
    broken "$list is malformed"; return 0
  fi
  if ! sed -n 's/^[0-9a-f]\{64\}  //p' "$list" | sort -c -u 2>/dev/null; then
    broken "$list is not in order"; return 0
  fi
  if [ "$segment_size" -gt 0 ] && ! account_for "$list"; then broken "$list $problem"; return 0; fi

  # Names in form only: another name may hold a newline. Each line: name, size.
  find "$item_folder" -type f -regextype posix-basic -regex '[A-Za-z0-9_-][A-Za-z0-9._/-]*' \
    -printf '%P %s\n' | sort >"$work/present"
  sed 's/ .*//' "$work/present" >"$work/present.names"
  sed -n 's/^[0-9a-f]\{64\}  //p' "$list" | sort >"$work/expected.names"
  comm -23 "$work/expected.names" "$work/present.names" >"$work/list"
  each_is "$work/list" broken "is missing from item $1"

  if [ "$segment_size" -gt 0 ]; then
    last_length=$((list_size % segment_size))
    if [ "$last_length" -eq 0 ]; then last_length=$segment_size; fi
    last_name=data/$(printf '%016x' $((list_size > 0 ? (list_size - 1) / segment_size : 0)))
    sed "s/\$/ $segment_size/; s,^\($last_name\) .*,\1 $last_length," "$work/expected.names" |
      sort >"$work/expected"
    comm -23 "$work/expected" "$work/present" | sed 's/ .*//' |
      comm -12 - "$work/present.names" >"$work/list"
    each_is "$work/list" broken "of item $1 has not the size recorded"
  else
    total=0
    join "$work/present" "$work/expected.names" >"$work/list"
    while read -r _ size; do total=$((total + size)); done <"$work/list"
    if [ "$total" -ne "$list_size" ]; then
      broken "item $1: its objects have $total bytes, recorded $list_size"
    fi
  fi

  count_list "$list"
  check_manifest "$1"
  if [ "$layout" = '"set"' ]; then check_members "$1"; fi

  if [ -z "$quick" ] && [ -n "$bag" ]; then
    # All of the payload was hashed: what its list says must be what was acquired.
    sed -n "s|^\([0-9a-f]\{64\}  \)data/|\1data/cases/$case_id/$place/data/|p" "$list" | sort |
      comm -23 - "$work/manifest" | sed 's/^.\{66\}//' >"$work/list"
    each_is "$work/list" broken 'is not what was acquired'
  elif [ -z "$quick" ] && [ -s "$work/expected.names" ]; then
    # Links would be followed: what is no regular file was reported as missing above.
    (cd "$item_folder" && sha256sum -c --strict --quiet segments.sha256) >"$work/list" 2>/dev/null ||
      { each_is "$work/list" broken "(item $1)"
        [ -s "$work/list" ] || broken "item $1: its objects could not be checked"; }
  fi

  printf '%s\n' manifest.json members.jsonl segments.sha256 | sort - "$work/expected.names" |
    comm -13 - "$work/present.names" >"$work/list"
  each_is "$work/list" note "of item $1 is not logged: no entry speaks of it"
}

if [ -n "$only_ledger" ]; then items_to_check=''; else items_to_check=$items; fi
for item in $items_to_check; do
  eval "state=\$state_$item"
  case $state in
    complete) checked=$((checked + 1)); check_item "$item" ;;
    disposed) note "item $item was disposed of" ;;
    *) note "item $item is $state: it was not acquired to the end" ;;
  esac
done

if [ -d items ] && [ -z "$only_ledger" ]; then
  for item in $items; do printf 'items/%s\n' "$item"; done | sort >"$work/claimed"
  find items -mindepth 1 -maxdepth 1 -regextype posix-basic -regex 'items/[A-Za-z0-9._-]*' | sort |
    comm -13 "$work/claimed" - >"$work/list"
  each_is "$work/list" note 'is not logged: no entry speaks of it'
  find items -mindepth 1 -regextype posix-basic \
    '(' ! -regex 'items/[A-Za-z0-9._/-]*' -o ! -type f ! -type d ')' -printf 'x\n' >"$work/list"
  while read -r _; do
    note 'something with an odd name or of an odd type lies in items/; no entry speaks of it'
    break
  done <"$work/list"
fi
find . -mindepth 1 -maxdepth 1 ! -name ledger ! -name checkpoints ! -name keys ! -name items \
  ! -path "./received$continues" -printf 'x\n' >"$work/list"
while read -r _; do
  note 'something beside ledger, checkpoints, keys and items lies in the case; no entry speaks of it'
  break
done <"$work/list"

if [ -n "$bag" ] && [ "$entries" -gt 0 ]; then
  check_bag_says
  check_raw
fi

# The ledger that a received case came with: verified by itself, and against what was received of it.
check_received() { # SIZE:ROOT KEY
  inner=received/cases/$case_id size=${1%%:*}
  if ! is_number "$size"; then broken 'a delivery states no size'; return 0; fi
  padded=000000000000000$size
  while [ "${#padded}" -gt 16 ]; do padded=${padded#0}; done
  set -- "$1" "$2" -l -k "$2"
  if [ -f "$inner/checkpoints/$padded/log.note" ]; then set -- "$@" -r "$1"
  else note "received: no checkpoint over the $size entries of the delivery; they were not sealed"; fi
  receipt=$1
  shift 2
  /bin/sh "$script" "$@" "$inner" >"$work/inner" 2>&1 || broken "received: not what was received ($receipt)"
  while IFS= read -r line; do
    case $line in 'not checked:'*) ;; *) say received: "$line" ;; esac
  done <"$work/inner"
}

if [ -z "$continues" ]; then
  if [ -z "$deliveries" ]; then note 'received: an import was begun and not finished; run it again'; fi
  for delivery in $deliveries; do check_received "${delivery%:*}" "${delivery##*:}"; done
fi

end
[ -z "$quick" ] || note 'quick: the content of stored objects was not read'
say 'not checked:' "$not_checked"
printf 'OK %s entries, %s items, root %s:%s, first key %s\n' \
  "$entries" "$checked" "$sealed" "${sealed_root:-none}" "$first_key"
