# A stand-in for the official python image: Debian's Python. Build context: the authorities that this machine trusts.
FROM citystream-standin/debian
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends python3 python3-pip \
    && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python
COPY ca-certificates.crt /etc/ssl/certs/
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
