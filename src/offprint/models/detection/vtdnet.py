"""VTDNet."""
from offprint.models.detection._vtdnet_flow import flow_proxy_iou
from offprint.models.detection._vtdnet_scores import partial_label_loss, vtda
from offprint.models.detection._vtdnet_tracking import embedding_losses, track_association
