#!/bin/sh
# Makes what compose.yaml calls its secrets, in the folder given or beside this file. What is there
# stays as it is. The folder is closed to other users of this machine; the files in it are readable,
# because the containers' user is not theirs.
set -eu
folder=${1:-$(dirname "$0")/secrets}
command -v openssl >/dev/null || { echo "openssl is not on PATH, which makes the keys" >&2; exit 1; }
umask 077
mkdir -p "$folder"
chmod 700 "$folder"
if [ ! -e "$folder/signing_key.pem" ]; then
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$folder/.signing_key.pem"
    chmod 444 "$folder/.signing_key.pem"
    mv "$folder/.signing_key.pem" "$folder/signing_key.pem"
fi
if [ ! -e "$folder/public_key.pem" ]; then
    openssl pkey -in "$folder/signing_key.pem" -pubout -out "$folder/.public_key.pem"
    chmod 444 "$folder/.public_key.pem"
    mv "$folder/.public_key.pem" "$folder/public_key.pem"
fi
echo "secrets are in $folder"
