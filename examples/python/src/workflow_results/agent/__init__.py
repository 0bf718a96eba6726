"""An agent: it takes triggers from Kafka, runs a LangGraph graph for each, and hands the results to the sidecar.

``python -m workflow_results.agent run module:graph --brokers HOST:PORT``
"""
