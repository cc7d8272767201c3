# A stand-in for apache/kafka: Debian's Java and the jars that Maven brought.
FROM citystream-standin/debian
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless
RUN useradd --uid 1000 appuser && install -d -o appuser /var/lib/kafka/data
COPY libs /opt/kafka/libs
COPY kafka.sh /run.sh
USER appuser
ENTRYPOINT ["bash", "/run.sh"]
