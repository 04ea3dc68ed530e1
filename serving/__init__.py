"""A TF-Serving-compatible server and client for one machine.

Knows no recall: it serves any SavedModel, as tensorflow_model_server does. The modules, bottom up:

    errors        one exception with a canonical code; its gRPC and HTTP faces
    tensors       TensorProto <-> NumPy, and the checks of a tensor against its TensorInfo
    json_request  the REST API's JSON -> PredictRequest
    json_reply    TensorProtos -> the REST API's JSON
    metrics       request counters and latency histograms as Prometheus text
    servable      one loaded SavedModel version: signatures, Predict, warm-up
    model         all versions of one model: polling, background loads, swaps, unloads
    core          all models of the server: look-up by name, version and label
    grpc_api      PredictionService and ModelService
    rest_api      the HTTP paths
    model_server  all of these as one object
    server        the `genrecall serve` command
    client        a reusable client
    quiet         keeps TensorFlow's chatter off a command's output
"""
